-- ARGV: epoch, holder, limit, lease_ms, steal (1 or 0), now_ms or ''. Returns chunk, sequence, regrant, chunk, …
local holder, limit = ARGV[2], tonumber(ARGV[3])
local state = redis.call('HMGET', meta, 'epoch', 'sequence')
if state[1] ~= ARGV[1] then return LOST end
local now_us = microseconds(ARGV[6])
local now_ms = math.floor(now_us / 1000)
local deadline = now_ms + tonumber(ARGV[4])
-- Time keeps the sequence ahead of every earlier one even where the hash came back from the past.
local sequence = math.max(tonumber(state[2] or 0), now_us - 1)
local grants = {}

local function grant(chunk, regrant)
  sequence = sequence + 1
  redis.call('HSET', leases, chunk, string.format('%.0f:0:%s', sequence, holder))
  redis.call('ZADD', deadlines, deadline, chunk)
  grants[#grants + 1] = tonumber(chunk)
  grants[#grants + 1] = sequence
  grants[#grants + 1] = regrant
end

-- The last grant that its holder has not begun, of the holder that has most of those.
local function stealable()
  local count, newest, chunk_of = {}, {}, {}
  local entries = redis.call('HGETALL', leases)
  for i = 1, #entries, 2 do
    local granted, begun, owner = string.match(entries[i + 1], '^(%d+):(%d):(.*)$')
    if begun == '0' and owner ~= holder then
      granted = tonumber(granted)
      count[owner] = (count[owner] or 0) + 1
      if granted > (newest[owner] or 0) then newest[owner], chunk_of[owner] = granted, entries[i] end
    end
  end
  local victim = nil
  for owner, n in pairs(count) do
    -- Equal counts: the later grant decides; names would be compared by the server's locale.
    if not victim or n > count[victim] or (n == count[victim] and newest[owner] > newest[victim]) then
      victim = owner
    end
  end
  return victim and chunk_of[victim]
end

local expired = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms)
if #expired > 0 then give_back(expired) end
for _ = 1, limit do
  local element = redis.call('LPOP', pending)
  if not element then break end
  local chunk = string.match(element, '^%d+')
  grant(chunk, #element > #chunk and 1 or 0)
end
if #grants == 0 and limit > 0 and ARGV[5] == '1' then
  local chunk = stealable()
  if chunk then grant(chunk, 1) end
end
if #grants > 0 then redis.call('HSET', meta, 'sequence', string.format('%.0f', sequence)) end
return grants
