-- Included by other scripts: what happens when a job ends.
-- include: job_batches

local function is_listed(list, item)
  return string.find(',' .. list .. ',', ',' .. item .. ',', 1, true)
end

-- The event is a copy of the record, because the record may expire before it is delivered.
local function queue_webhook(record, id, status, ended_at)
  local statuses = redis.call('HGET', record, 'webhook_on')
  if not statuses or not is_listed(statuses, status) then return end
  redis.call('COPY', record, key(keys.OUTBOX_EVENT, {id = id}))
  redis.call('ZADD', keys.OUTBOX, ended_at, id)
  redis.call('HSET', record, 'delivery', '{"status":"pending","attempts":0}')
end

-- The jobs with the same result.
local function same_results(owner, digest)
  return key(keys.SAME_RESULTS, {owner = owner, digest = digest})
end

local function end_job(id, status, model, owner, batch, ended_at)
  local record = key(keys.JOB, {id = id})
  local ttl, digest = unpack(redis.call('HMGET', record, 'result_ttl_s', 'result_digest'))
  -- A job of a batch expires with the batch.
  if not batch or redis.call('EXISTS', batch_key(batch)) == 0 then
    local kept_until = string.format('%.6f', tonumber(ended_at) + (ttl or 0))
    redis.call('HSET', record, 'expires_at', kept_until)
    redis.call('ZADD', keys.EXPIRING_JOBS, kept_until, id)
  end
  redis.call('ZREM', keys.DEADLINES, id)
  redis.call('HINCRBY', keys.ENDED_JOBS, status .. ' ' .. model, 1)
  if digest then redis.call('ZADD', same_results(owner, digest), ended_at, id) end
  queue_webhook(record, id, status, ended_at)
end
