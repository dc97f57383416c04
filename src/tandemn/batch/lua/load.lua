-- One part of a load. The chunks gather in a key of their own, and the last part puts it in place: a
-- loader that dies half-way leaves the old queue as it was, and keys that end by themselves.
-- KEYS: …, staging, loader. ARGV: epoch, loader's name, first (1 or 0), last (1 or 0), total, staging_ms, chunks…
local staging, loader = KEYS[5], KEYS[6]
local current = redis.call('HGET', meta, 'epoch')
if current and tonumber(current) > tonumber(ARGV[1]) then return LOST end
if ARGV[3] == '0' and redis.call('GET', loader) ~= ARGV[2] then return LOST end
-- The first write, for this one is refused where memory is full: later ones of a script are not.
redis.call('SET', loader, ARGV[2], 'PX', ARGV[6])
if ARGV[3] == '1' then redis.call('UNLINK', staging) end
-- Lua's stack takes some 8,000 values at a time.
for i = 7, #ARGV, 1000 do
  redis.call('RPUSH', staging, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
redis.call('PEXPIRE', staging, ARGV[6])
if ARGV[4] == '0' then return 0 end
if redis.call('LLEN', staging) ~= tonumber(ARGV[5]) then
  redis.call('UNLINK', staging, loader)
  return LOST
end
redis.call('UNLINK', pending, leases, deadlines, loader)
if tonumber(ARGV[5]) > 0 then
  redis.call('RENAME', staging, pending)
  redis.call('PERSIST', pending)
end
redis.call('HSET', meta, 'epoch', ARGV[1])
return 0
