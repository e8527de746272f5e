-- Marks a job that goes on after its deadline.
-- ARGV: id. Returns 1, or 0 if the job is to be cancelled.
-- include: keys

local id = ARGV[1]
local record = key(keys.JOB, {id = id})
if redis.call('HGET', record, 'deadline_policy') ~= 'best_effort' then return 0 end
if redis.call('ZREM', keys.DEADLINES, id) == 1 then
  redis.call('HSET', record, 'deadline_missed', 1)
  redis.call('HINCRBY', record, 'revision', 1)
  redis.call('PUBLISH', keys.JOB_CHANGES, id)
end
return 1
