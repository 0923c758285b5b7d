// The functions that both Node clients share.
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function check(name, condition) {
  try {
    console.log(`check ${name}: ${(await condition()) ? "ok" : "wrong result"}`);
  } catch (error) {
    console.log(`check ${name}: ${error.name}: ${error.message}`);
  }
}

// Pings until Redis answers again, and prints how many pings failed.
async function outlive(redis) {
  await redis.ping();
  console.log("ready");
  await new Promise((done) => process.stdin.once("data", done));
  const errors = [];
  while (errors.length < 400) {
    try {
      await redis.ping();
      break;
    } catch (error) {
      errors.push(error.constructor.name);
      await sleep(50);
    }
  }
  console.log(`back after ${errors.length} errors ${[...new Set(errors)].join(" ")}`);
}

module.exports = { sleep, check, outlive };
