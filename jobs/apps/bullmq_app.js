// BullMQ: a worker, and a producer that reconnects for every job.
const fs = require("fs");
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const { JOBS_FOLDER, JOBS_WORKER, JOBS_DURATION, JOBS_RATE, REDIS_URL } = process.env;
const note = (file, line) => fs.appendFileSync(`${JOBS_FOLDER}/${file}`, `${line}\n`);
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
// Without a listener, Node ends the process at the first lost connection.
const quietly = (emitter) => emitter.on("error", () => {});
// BullMQ's documentation advises to reconnect when the server has become a replica.
const reconnectOnError = (error) => (error.message.startsWith("READONLY") ? 2 : false);
const connect = (maxRetriesPerRequest) =>
  quietly(new Redis(REDIS_URL, { maxRetriesPerRequest, reconnectOnError }));

async function work() {
  const connection = connect(null);
  const perform = async (job) => {
    await connection.incr("performed");
    await pause(JOBS_DURATION);
    note("done", job.data.id);
  };
  // Find the jobs of a lost worker after seconds instead of half a minute.
  const patience = { lockDuration: 5000, stalledInterval: 5000, maxStalledCount: 10 };
  const worker = quietly(new Worker("jobs", perform, { connection, concurrency: 3, ...patience }));
  process.on("SIGTERM", async () => {
    await worker.close();
    process.exit(0);
  });
  await worker.waitUntilReady();
  note("ready", JOBS_WORKER);
}

async function produce() {
  for (let number = 1; !fs.existsSync(`${JOBS_FOLDER}/stop`); number++) {
    const id = `producer-${number}`;
    const connection = connect(1);
    const queue = quietly(new Queue("jobs", { connection }));
    try {
      await queue.add("job", { id }, { removeOnComplete: true });
      note("enqueued", `ok ${id}`);
    } catch (error) {
      note("enqueued", `failed ${id} ${error.name}`);
    }
    await queue.close().catch(() => {});
    connection.disconnect();
    await pause(1 / JOBS_RATE);
  }
  process.exit(0);
}

process.argv[2] === "produce" ? produce() : work();
