-- Deletes the record of an ended job. A deleted job's pending webhook is dropped; an expired job's is still delivered.
-- ARGV: id, reason, seconds to remember the reason, time at which to list the job as expired once more or ''.
-- Returns 1, or 0 if there is no such job or it has not ended.
-- include: job_indices

local id, reason, remember_s, again_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = key(keys.JOB, {id = id})
local status, owner = unpack(redis.call('HMGET', record, 'status', 'owner'))
owner = owner or ''
if not status then
  redis.call('ZREM', keys.EXPIRING_JOBS, id)
  return 0
end
if status == 'queued' or status == 'running' then return 0 end

redis.call('DEL', record)
for _, index in ipairs(indices_of_all(owner)) do redis.call('ZREM', index, id) end
for _, index in ipairs(indices_by_status(status, owner)) do redis.call('ZREM', index, id) end
if again_at == '' then
  redis.call('ZREM', keys.EXPIRING_JOBS, id)
else
  redis.call('ZADD', keys.EXPIRING_JOBS, again_at, id)
end
redis.call('SET', key(keys.GONE_JOB, {id = id}), reason .. ' ' .. owner, 'EX', remember_s)
if reason == 'deleted' and redis.call('ZREM', keys.OUTBOX, id) == 1 then
  redis.call('DEL', key(keys.OUTBOX_EVENT, {id = id}))
end
redis.call('PUBLISH', keys.JOB_CHANGES, id)
return 1
