# A Ruby app with the redis gem, written as if there were no tunnel.
require "redis"

def redis
  @redis ||= Redis.new(url: ENV.fetch("REDIS_URL"))
end

def check(name)
  result = yield
  puts "check #{name}: #{result ? "ok" : "wrong result"}"
rescue StandardError => e
  puts "check #{name}: #{e.class}: #{e.message}"
end

def checks
  check("boot") { redis.ping == "PONG" }
  check("user") { redis.call("ACL", "WHOAMI") == "app" }
  check("database") { redis.call("CLIENT", "INFO").include?(" db=3 ") }
  check("pipeline") { redis.pipelined { |p| 100.times { |n| p.echo(n.to_s) } } == (0...100).map(&:to_s) }
  check("transaction") { redis.multi { |m| m.set("a", "1"); m.incr("a") } == ["OK", 2] }
  check("pubsub") do
    heard = nil
    listener = Redis.new(url: ENV.fetch("REDIS_URL"))
    listener.subscribe("news") do |on|
      on.subscribe { redis.publish("news", "hello") }
      on.message { |_, message| heard = message; listener.unsubscribe("news") }
    end
    heard == "hello"
  end
  check("blocking") do
    pusher = Thread.new { sleep 0.1; Redis.new(url: ENV.fetch("REDIS_URL")).rpush("jobs", "job") }
    popped = redis.blpop("jobs", timeout: 10)
    pusher.join
    popped == ["jobs", "job"]
  end
  check("10 MiB") { value = "v" * (10 << 20); redis.set("big", value) == "OK" && redis.get("big") == value }
end

def once
  puts "got #{redis.ping}"
rescue StandardError => e
  puts "error #{e.class}: #{e.message}"
end

def outlive
  redis.ping
  puts "ready"
  $stdin.gets
  errors = []
  begin
    redis.ping
  rescue StandardError => e
    errors << e.class
    sleep 0.05
    retry if errors.size < 400
  end
  puts "back after #{errors.size} errors #{errors.uniq.join(" ")}"
end

def serve
  stop = false
  trap("TERM") { stop = true }
  redis.set("serving", "1")
  puts "ready"
  redis.blpop("nothing", timeout: 1) until stop
  redis.set("farewell", "bye")
  puts "bye"
end

$stdout.sync = true
send(ARGV.fetch(0, "checks"))
