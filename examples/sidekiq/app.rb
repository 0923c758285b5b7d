# A worker with Sidekiq, written as if there were no tunnel.
require "sidekiq"

class Job
  include Sidekiq::Worker

  def perform(number)
    Sidekiq.redis { |redis| redis.set("started", number) }
    sleep 1.5
    Sidekiq.redis { |redis| redis.set("finished", number) }
  end
end
