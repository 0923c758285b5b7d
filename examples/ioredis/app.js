// A Node app with ioredis, written as if there were no tunnel.
const Redis = require("ioredis");
const { check, outlive, sleep } = require("../modes");

const connect = (options) => {
  const client = new Redis(process.env.REDIS_URL, options);
  client.on("error", () => {}); // The failed request reports the error.
  return client;
};
let redis;

const modes = {
  async checks() {
    redis = connect({ maxRetriesPerRequest: 0 }); // Fail at once instead of retrying.
    await check("boot", async () => (await redis.ping()) === "PONG");
    await check("user", async () => (await redis.acl("WHOAMI")) === "app");
    await check("database", async () => (await redis.client("INFO")).includes(" db=3 "));
    await check("pipeline", async () => {
      const pipeline = redis.pipeline();
      for (let n = 0; n < 100; n++) pipeline.echo(String(n));
      return (await pipeline.exec()).every(([error, reply], n) => !error && reply === String(n));
    });
    await check("transaction", async () => {
      const replies = await redis.multi().set("a", 1).incr("a").exec();
      return replies.length === 2 && replies[1][1] === 2;
    });
    await check("pubsub", async () => {
      const listener = connect();
      const heard = new Promise((done) => listener.on("message", (_, message) => done(message)));
      await listener.subscribe("news");
      await redis.publish("news", "hello");
      const message = await heard;
      listener.disconnect();
      return message === "hello";
    });
    await check("blocking", async () => {
      const pusher = connect();
      const pushed = sleep(100).then(() => pusher.rpush("jobs", "job"));
      const popped = await redis.blpop("jobs", 10);
      await pushed;
      pusher.disconnect();
      return popped.join() === "jobs,job";
    });
    await check("10 MiB", async () => {
      const value = "v".repeat(10 << 20);
      return (await redis.set("big", value)) === "OK" && (await redis.get("big")) === value;
    });
  },
  async once() {
    redis = connect({ maxRetriesPerRequest: 0, retryStrategy: () => null });
    const seen = new Promise((done) => redis.once("error", done));
    try {
      console.log(`got ${await redis.echo("PONG")}`);
    } catch (error) {
      const first = await Promise.race([seen, sleep(200)]);
      console.log(`error ${error.name}: ${error.message} ${first ? first.message : ""}`);
    }
  },
  async outlive() {
    redis = connect({ maxRetriesPerRequest: 0 });
    await outlive(redis);
  },
  async serve() {
    redis = connect();
    let stop = false;
    process.on("SIGTERM", () => (stop = true));
    await redis.set("serving", 1);
    console.log("ready");
    while (!stop) await redis.blpop("nothing", 1);
    await redis.set("farewell", "bye");
    console.log("bye");
  },
};

modes[process.argv[2] || "checks"]().then(() => process.exit(0));
