-- ARGV: epoch. Returns every chunk, in strings of many: a million elements of their own would cost far more memory.
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return LOST end
local PAGE = 5000
local answer = {table.concat(redis.call('HKEYS', leases), ' ')}
for from = 0, redis.call('LLEN', pending) - 1, PAGE do
  answer[#answer + 1] = table.concat(redis.call('LRANGE', pending, from, from + PAGE - 1), ' ')
end
return answer
