# Ruby's Net::HTTP.
require 'net/http'

body = '{"card": "4111111111111111", "name": "x"}'
answer = Net::HTTP.post(URI(ENV['UPGRADED']), body, 'Content-Type' => 'application/json')
puts "upgraded #{answer.code}"
%w[inspected tunnelled refused].each { |name| puts "#{name} #{Net::HTTP.get_response(URI(ENV[name.upcase])).code}" }
