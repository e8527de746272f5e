-- Deletes the record of an ended job. A deleted job's pending webhook is dropped; an expired job's is still delivered.
-- ARGV: id, reason, seconds to remember the reason, time at which to list the job as expired once more or ''.
-- Returns the blob keys of inputs that no job needs any more; nothing if there is no such job or it has not ended.
-- include: end_job
-- include: image_quota
-- include: job_indices

local id, reason, remember_s, again_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = key(keys.JOB, {id = id})
local status, owner, inputs, batch, digest = unpack(
  redis.call('HMGET', record, 'status', 'owner', 'inputs', 'batch_id', 'result_digest'))
owner = owner or ''

local function drop_webhook()
  return redis.call('ZREM', keys.OUTBOX, id) == 1 and redis.call('DEL', key(keys.OUTBOX_EVENT, {id = id})) == 1
end

-- Returns the inputs that are due for deletion, because this was the last job that needed them.
local function release_inputs()
  local unused = {}
  for blob in string.gmatch(inputs or '', '%S+') do
    local uses = uses_of(blob)
    if redis.call('HEXISTS', uses, owner) == 1 then
      if redis.call('HINCRBY', uses, owner, -1) <= 0 then
        redis.call('HDEL', uses, owner)
        discount_owner(blob, owner)
      end
      if count_users(blob) == 0 then
        redis.call('ZADD', keys.INPUT_IMAGES, 0, blob)
        unused[#unused + 1] = blob
      end
    end
  end
  return unused
end

if not status then
  -- An expired job's event is the last copy of the job.
  if reason == 'deleted' and drop_webhook() then redis.call('INCR', keys.ERASURES) end
  if reason ~= 'deleted' then redis.call('ZREM', keys.EXPIRING_JOBS, id) end
  return false
end
if status == 'queued' or status == 'running' then return false end

if batch then remove_from_batch(batch, id, status) end
if digest then redis.call('ZREM', same_results(owner, digest), id) end
redis.call('DEL', record, key(keys.PREVIEW, {id = id}), key(keys.PREVIEW_REQUEST, {id = id}))
for _, index in ipairs(indices_of_all(owner)) do redis.call('ZREM', index, id) end
for _, index in ipairs(indices_by_status(status, owner)) do redis.call('ZREM', index, id) end
if again_at == '' then
  redis.call('ZREM', keys.EXPIRING_JOBS, id)
else
  redis.call('ZADD', keys.EXPIRING_JOBS, again_at, id)
end
redis.call('SET', key(keys.GONE_JOB, {id = id}), reason .. ' ' .. owner, 'EX', remember_s)
redis.call('INCR', keys.ERASURES)
if reason == 'deleted' then drop_webhook() end
redis.call('PUBLISH', keys.JOB_CHANGES, id)
return release_inputs()
