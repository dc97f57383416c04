-- ARGV: epoch, holder, delay_ms, now_ms or ''. Returns the chunks taken back.
-- With a delay they are kept under new tokens by "holder~", as begun: neither the old token nor a thief gets them.
local state = redis.call('HMGET', meta, 'epoch', 'sequence')
if state[1] ~= ARGV[1] then return LOST end
local holder, delay = ARGV[2], tonumber(ARGV[3])
local entries, chunks, numbers = redis.call('HGETALL', leases), {}, {}
for i = 1, #entries, 2 do
  if string.match(entries[i + 1], '^%d+:%d:(.*)$') == holder then chunks[#chunks + 1] = entries[i] end
end
if delay == 0 then
  give_back(chunks)
elseif #chunks > 0 then
  local now_us = microseconds(ARGV[4])
  local sequence = math.max(tonumber(state[2] or 0), now_us - 1)
  table.sort(chunks, function(a, b) return tonumber(a) < tonumber(b) end)
  for _, chunk in ipairs(chunks) do
    sequence = sequence + 1
    redis.call('HSET', leases, chunk, string.format('%.0f:1:%s~', sequence, holder))
    redis.call('ZADD', deadlines, math.floor(now_us / 1000) + delay, chunk)
  end
  redis.call('HSET', meta, 'sequence', string.format('%.0f', sequence))
end
for i, chunk in ipairs(chunks) do numbers[i] = tonumber(chunk) end
return numbers
