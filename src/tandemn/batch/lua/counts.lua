-- ARGV: epoch. Returns pending, then the holder of each lease.
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return LOST end
local answer = {redis.call('LLEN', pending)}
for _, lease in ipairs(redis.call('HVALS', leases)) do
  answer[#answer + 1] = string.match(lease, '^%d+:%d:(.*)$')
end
return answer
