-- Marks a batch as complete: all of its jobs are queued. ARGV: id, now. Returns 1, or 0 if it was deleted.
-- include: job_batches

local id, now = ARGV[1], ARGV[2]
local record = batch_key(id)
local status = redis.call('HGET', record, 'status')
if not status then return 0 end
if status == 'accepting' then
  redis.call('HSET', record, 'status', 'running')
  redis.call('ZREM', keys.EXPIRING_BATCHES, id)
  end_batch(id, now)
  redis.call('PUBLISH', keys.JOB_CHANGES, id)
end
return 1
