// A worker with BullMQ, and a producer that opens new connections for every job.
const fs = require("fs");
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const { JOBS_FOLDER, JOBS_WORKER, JOBS_DURATION, JOBS_RATE, REDIS_URL } = process.env;
const note = (file, line) => fs.appendFileSync(`${JOBS_FOLDER}/${file}`, `${line}\n`);
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
// Without an error listener, Node ends the process when a connection is lost.
const quietly = (emitter) => emitter.on("error", () => {});
// Reconnect when the server has become a replica, as BullMQ's documentation advises.
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
  // Deliver a lost worker's jobs again after 5 seconds instead of half a minute.
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
