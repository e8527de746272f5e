-- Deletes the record of a batch without jobs, and remembers the reason.
-- ARGV: id, reason, seconds to remember the reason. Returns 1, or 0 if there is none.
-- include: keys

local id, reason, remember_s = ARGV[1], ARGV[2], ARGV[3]
local record = key(keys.BATCH, {id = id})
local owner = redis.call('HGET', record, 'owner')
redis.call('ZREM', keys.EXPIRING_BATCHES, id)
-- An expired batch's event is still delivered.
if reason == 'deleted' and redis.call('ZREM', keys.OUTBOX, id) == 1 then
  redis.call('DEL', key(keys.OUTBOX_EVENT, {id = id}))
end
if not owner then return 0 end
redis.call('DEL', record, key(keys.BATCH_JOBS, {id = id}), key(keys.BATCH_ENDED_JOBS, {id = id}))
redis.call('ZREM', keys.BATCHES, id)
if owner ~= '' then redis.call('ZREM', key(keys.BATCHES_OF_OWNER, {owner = owner}), id) end
redis.call('SET', key(keys.GONE_BATCH, {id = id}), reason .. ' ' .. owner, 'EX', remember_s)
redis.call('INCR', keys.ERASURES)
redis.call('PUBLISH', keys.JOB_CHANGES, id)
return 1
