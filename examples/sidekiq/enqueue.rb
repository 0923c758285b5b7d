require_relative "app"
puts "enqueued #{Job.perform_async(7)}"
