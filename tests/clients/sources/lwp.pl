# Perl's LWP, which is not told here to read the proxy variables.
use strict;
use warnings;
use LWP::UserAgent;

my $client = LWP::UserAgent->new;
my $body = '{"card": "4111111111111111", "name": "x"}';
my $answer = $client->post($ENV{UPGRADED}, 'Content-Type' => 'application/json', Content => $body);
print "upgraded @{[$answer->code]}\n";
print "$_ @{[$client->get($ENV{uc $_})->code]}\n" for qw(inspected tunnelled refused);
