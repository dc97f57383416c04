-- Stands before every script of the chunk queue (the client joins them): the keys, the epoch check,
-- and the two ways in which a grant ends.
--   meta       hash: epoch, sequence (the last one granted)
--   pending    list of chunks, next one first; "12r" is chunk 12, held before in this epoch
--   leases     hash: chunk -> "sequence:begun:holder"
--   deadlines  sorted set: chunk by the end of its lease, in ms
-- A script reads everything that can fail before it writes: Redis does not roll back.
local meta, pending, leases, deadlines = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local LOST, STALE = -1, -2

-- The server's own time unless a test gives one: holders' clocks are not to be trusted.
local function microseconds(given_ms)
  if given_ms ~= '' then return tonumber(given_ms) * 1000 end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- What is wrong with a token, or nil. One of an older epoch is stale; one of a newer epoch than the
-- queue's means that the queue came back from the past.
local function fault_of(epoch, chunk, sequence)
  local current = redis.call('HGET', meta, 'epoch')
  if not current or tonumber(current) < tonumber(epoch) then return LOST end
  local lease = current == epoch and redis.call('HGET', leases, chunk)
  if not lease or string.match(lease, '^%d+') ~= sequence then return STALE end
  return nil
end

local function forget(chunk)
  redis.call('HDEL', leases, chunk)
  redis.call('ZREM', deadlines, chunk)
end

-- The front of the queue, lowest chunk first, whatever order they were taken back in.
local function give_back(chunks)
  table.sort(chunks, function(a, b) return tonumber(a) > tonumber(b) end)
  for _, chunk in ipairs(chunks) do
    forget(chunk)
    redis.call('LPUSH', pending, chunk .. 'r')
  end
end
