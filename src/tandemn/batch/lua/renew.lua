-- ARGV: epoch, holder, lease_ms, now_ms or '', then chunk, sequence, chunk, … Returns the chunks that are lost.
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return LOST end
local deadline = math.floor(microseconds(ARGV[4]) / 1000) + tonumber(ARGV[3])
local lost = {}
for i = 5, #ARGV, 2 do
  local lease = redis.call('HGET', leases, ARGV[i])
  local granted, owner = string.match(lease or '', '^(%d+):%d:(.*)$')
  if granted == ARGV[i + 1] and owner == ARGV[2] then
    redis.call('ZADD', deadlines, deadline, ARGV[i])
  else
    lost[#lost + 1] = tonumber(ARGV[i])
  end
end
return lost
