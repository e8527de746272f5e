-- Records the result of a delivery attempt, if `claim` still holds the event.
-- ARGV: id, claim id or '' for any, delivery as JSON, time of the next attempt or '' for none. Returns 1 or 0.
-- include: keys

local id, claim, delivery, next_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local event, record = key(keys.OUTBOX_EVENT, {id = id}), key(keys.JOB, {id = id})
if redis.call('HEXISTS', event, 'total') == 1 then record = key(keys.BATCH, {id = id}) end
if claim ~= '' and redis.call('HGET', event, 'claim') ~= claim then return 0 end
if next_at == '' then
  redis.call('DEL', event)
  redis.call('ZREM', keys.OUTBOX, id)
else
  redis.call('ZADD', keys.OUTBOX, next_at, id)
end
if redis.call('EXISTS', record) == 1 then
  redis.call('HSET', record, 'delivery', delivery)
elseif next_at == '' then
  -- The event was the last copy of the job.
  redis.call('INCR', keys.ERASURES)
end
return 1
