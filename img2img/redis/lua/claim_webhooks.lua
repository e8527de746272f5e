-- Leases due events to one dispatcher. Skips events of owners, and of hosts of an owner, that have reached their limit.
-- ARGV: now, end of the lease, claim id, most events, most events of one owner, most events of one host of an owner,
--   events in flight as JSON: {owner: {host: number}}; number of due events to skip, most due events to look at.
-- Returns the events as {id, {field, value, ...}}, the number of events that were looked at, and of those skipped.
-- include: keys

local now, lease_until, claim, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local owner_limit, host_limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local of_owner, of_host = {}, {}

local function count(owner, host, number)
  local pair = owner .. ' ' .. host
  of_owner[owner], of_host[pair] = (of_owner[owner] or 0) + number, (of_host[pair] or 0) + number
end

local function is_at_limit(owner, host)
  return (of_owner[owner] or 0) >= owner_limit or (of_host[owner .. ' ' .. host] or 0) >= host_limit
end

for owner, hosts in pairs(cjson.decode(ARGV[7])) do
  for host, number in pairs(hosts) do count(owner, host, number) end
end

local claimed, looked_at, skipped = {}, 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.OUTBOX, '-inf', now, 'LIMIT', ARGV[8], ARGV[9])) do
  if #claimed == limit then break end
  looked_at = looked_at + 1
  local event = key(keys.OUTBOX_EVENT, {id = id})
  local host, owner = unpack(redis.call('HMGET', event, 'webhook_host', 'owner'))
  owner = owner or ''
  if not host then
    redis.call('ZREM', keys.OUTBOX, id)
  elseif is_at_limit(owner, host) then
    skipped = skipped + 1
  else
    count(owner, host, 1)
    redis.call('ZADD', keys.OUTBOX, lease_until, id)
    redis.call('HSET', event, 'claim', claim)
    redis.call('HINCRBY', event, 'tries', 1)
    claimed[#claimed + 1] = {id, redis.call('HGETALL', event)}
  end
end
return {claimed, looked_at, skipped}
