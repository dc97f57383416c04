-- ARGV: epoch, holder. Returns the chunks taken back.
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return LOST end
local entries, chunks, numbers = redis.call('HGETALL', leases), {}, {}
for i = 1, #entries, 2 do
  if string.match(entries[i + 1], '^%d+:%d:(.*)$') == ARGV[2] then chunks[#chunks + 1] = entries[i] end
end
give_back(chunks)
for i, chunk in ipairs(chunks) do numbers[i] = tonumber(chunk) end
return numbers
