# Rails' cache store, written as if there were no tunnel.
require "active_support"
require "active_support/cache"
require "active_support/cache/redis_cache_store"

errors = []
handler = ->(method:, returning:, exception:) { errors << "#{exception.class}: #{exception.message}" }
cache = ActiveSupport::Cache::RedisCacheStore.new(url: ENV.fetch("REDIS_URL"), error_handler: handler)
cache.write("greeting", "hello", expires_in: 60)
puts "read #{cache.read("greeting")}"
puts "fetched #{cache.fetch("answer") { 42 }} #{cache.fetch("answer") { 43 }}"
puts "counted #{cache.increment("n")} #{cache.increment("n")}"
puts "several #{cache.read_multi("greeting", "answer").size}"
puts "errors #{errors.uniq.join("; ")}"
