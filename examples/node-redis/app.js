// A Node app with node-redis, written as if there were no tunnel.
const { createClient } = require("redis");
const { check, outlive, sleep } = require("../modes");

const connect = async (socket) => {
  const client = createClient({ url: process.env.REDIS_URL, socket });
  client.on("error", () => {}); // The failed request reports the error.
  await client.connect();
  return client;
};
let redis;

const modes = {
  async checks() {
    await check("boot", async () => {
      redis = await connect({ reconnectStrategy: false }); // Fail at once instead of retrying.
      return (await redis.ping()) === "PONG";
    });
    await check("user", async () => (await redis.aclWhoAmI()) === "app");
    await check("database", async () => (await redis.clientInfo()).db === 3);
    await check("pipeline", async () => {
      const numbers = Array.from({ length: 100 }, (_, n) => String(n));
      return (await Promise.all(numbers.map((n) => redis.echo(n)))).join() === numbers.join();
    });
    await check("transaction", async () => {
      const replies = await redis.multi().set("a", 1).incr("a").exec();
      return replies.length === 2 && replies[1] === 2;
    });
    await check("pubsub", async () => {
      const listener = await connect();
      let hear;
      const heard = new Promise((done) => (hear = done));
      await listener.subscribe("news", hear);
      await redis.publish("news", "hello");
      const message = await heard;
      listener.destroy();
      return message === "hello";
    });
    await check("blocking", async () => {
      const pusher = await connect();
      const pushed = sleep(100).then(() => pusher.rPush("jobs", "job"));
      const popped = await redis.blPop("jobs", 10);
      await pushed;
      pusher.destroy();
      return popped.key === "jobs" && popped.element === "job";
    });
    await check("10 MiB", async () => {
      const value = "v".repeat(10 << 20);
      return (await redis.set("big", value)) === "OK" && (await redis.get("big")) === value;
    });
  },
  async once() {
    try {
      redis = await connect({ reconnectStrategy: false });
      console.log(`got ${await redis.echo("PONG")}`);
    } catch (error) {
      console.log(`error ${error.name}: ${error.message}`);
    }
  },
  async outlive() {
    redis = await connect();
    await outlive(redis);
  },
  async serve() {
    redis = await connect();
    let stop = false;
    process.on("SIGTERM", () => (stop = true));
    await redis.set("serving", 1);
    console.log("ready");
    while (!stop) await redis.blPop("nothing", 1);
    await redis.set("farewell", "bye");
    console.log("bye");
  },
};

modes[process.argv[2] || "checks"]().then(() => process.exit(0));
