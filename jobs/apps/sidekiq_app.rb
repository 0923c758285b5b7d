# A job for Sidekiq, and a producer that opens a new connection for every job.
require "sidekiq"

def note(file, line)
  File.open("#{ENV.fetch("JOBS_FOLDER")}/#{file}", "a") { |open| open.syswrite("#{line}\n") }
end

Sidekiq.configure_server do |config|
  # Look for jobs to retry every second. By default, Sidekiq does so every few seconds.
  config.average_scheduled_poll_interval = 1
  config.on(:startup) { note("ready", ENV.fetch("JOBS_WORKER")) }
end

class Job
  include Sidekiq::Worker
  sidekiq_retry_in { 1 }

  def perform(id)
    Sidekiq.redis { |redis| redis.incr("performed") }
    sleep ENV.fetch("JOBS_DURATION").to_f
    note("done", id)
  end
end

def produce
  number = 0
  until File.exist?("#{ENV.fetch("JOBS_FOLDER")}/stop")
    id = "producer-#{number += 1}"
    begin
      Job.perform_async(id)
      note("enqueued", "ok #{id}")
    rescue => error
      note("enqueued", "failed #{id} #{error.class}")
    end
    Sidekiq.redis(&:close)
    sleep 1 / ENV.fetch("JOBS_RATE").to_f
  end
end

produce if $PROGRAM_NAME == __FILE__
