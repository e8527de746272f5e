-- Leases due events to one dispatcher. Skips events of hosts that have reached their limit.
-- ARGV: now, end of the lease, claim id, most events, most events of one host, events in flight by host as JSON,
--   number of due events to skip, most due events to look at.
-- Returns the events as {id, {field, value, ...}}, the number of events that were looked at, and of those skipped.
-- include: keys

local now, lease_until, claim, limit, host_limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local in_flight = cjson.decode(ARGV[6])
local claimed, looked_at, skipped = {}, 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.OUTBOX, '-inf', now, 'LIMIT', ARGV[7], ARGV[8])) do
  if #claimed == limit then break end
  looked_at = looked_at + 1
  local event = key(keys.OUTBOX_EVENT, {id = id})
  local host = redis.call('HGET', event, 'webhook_host')
  if not host then
    redis.call('ZREM', keys.OUTBOX, id)
  elseif (in_flight[host] or 0) >= host_limit then
    skipped = skipped + 1
  else
    in_flight[host] = (in_flight[host] or 0) + 1
    redis.call('ZADD', keys.OUTBOX, lease_until, id)
    redis.call('HSET', event, 'claim', claim)
    redis.call('HINCRBY', event, 'tries', 1)
    claimed[#claimed + 1] = {id, redis.call('HGETALL', event)}
  end
end
return {claimed, looked_at, skipped}
