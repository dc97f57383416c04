-- ARGV: epoch, chunk, sequence.
local fault = fault_of(ARGV[1], ARGV[2], ARGV[3])
if fault then return fault end
local lease = redis.call('HGET', leases, ARGV[2])
redis.call('HSET', leases, ARGV[2], (string.gsub(lease, '^(%d+):0:', '%1:1:')))
return 0
