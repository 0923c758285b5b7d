// A worker with BullMQ, written as if there were no tunnel.
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const connection = new Redis(process.env.REDIS_URL, { maxRetriesPerRequest: null });

async function job({ data }) {
  await connection.set("started", data.number);
  await new Promise((done) => setTimeout(done, 1500));
  await connection.set("finished", data.number);
}

async function main() {
  if (process.argv[2] === "enqueue") {
    const queued = await new Queue("default", { connection }).add("job", { number: 7 });
    console.log(`enqueued ${queued.id}`);
    process.exit(0);
  }
  const worker = new Worker("default", job, { connection });
  process.on("SIGTERM", async () => {
    await worker.close();
    process.exit(0);
  });
}

main();
