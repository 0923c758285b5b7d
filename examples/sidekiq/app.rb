# A worker with Sidekiq, as it would be without a tunnel.
require "sidekiq"

class Job
  include Sidekiq::Worker

  def perform(number)
    Sidekiq.redis { |redis| redis.set("started", number) }
    sleep 1.5
    Sidekiq.redis { |redis| redis.set("finished", number) }
  end
end
