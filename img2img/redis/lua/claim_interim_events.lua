-- Leases due events of running jobs to one dispatcher: their start, and their progress if it has changed.
-- ARGV: now, end of the lease, time of the next look at jobs without news, most jobs.
-- Returns the jobs as {id, {field, value, ...}}.
-- include: keys

local now, lease_until, next_at, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.INTERIM_EVENTS, '-inf', now, 'LIMIT', 0, limit)) do
  local record = key(keys.JOB, {id = id})
  local status, interim, step, sent_step =
    unpack(redis.call('HMGET', record, 'status', 'webhook_interim', 'step', 'interim_step'))
  -- A job that runs again is added again.
  local wants_logs = status == 'running' and string.find(interim, 'logs', 1, true)
  local is_start = status == 'running' and not sent_step and string.find(interim, 'start', 1, true)
  if is_start or wants_logs and sent_step ~= step then
    redis.call('HSET', record, 'interim_step', step)
    redis.call('ZADD', keys.INTERIM_EVENTS, lease_until, id)
    claimed[#claimed + 1] = {id, redis.call('HGETALL', record)}
  elseif wants_logs then
    redis.call('ZADD', keys.INTERIM_EVENTS, next_at, id)
  else
    redis.call('ZREM', keys.INTERIM_EVENTS, id)
  end
end
return claimed
