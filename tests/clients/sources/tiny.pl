# Perl's HTTP::Tiny, which comes with Perl.
use strict;
use warnings;
use HTTP::Tiny;

my $client = HTTP::Tiny->new(verify_SSL => 1);
my $body = '{"card": "4111111111111111", "name": "x"}';
my $answer = $client->post($ENV{UPGRADED}, {headers => {'Content-Type' => 'application/json'}, content => $body});
print "upgraded $answer->{status}\n";
print "$_ @{[$client->get($ENV{uc $_})->{status}]}\n" for qw(inspected tunnelled refused);
