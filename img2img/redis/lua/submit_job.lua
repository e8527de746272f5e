-- Queues a new job, unless its idempotency key is in use or a limit is reached. A job that reuses the result of an earlier
-- one is not queued, but ends at once; without the earlier job it returns 'source_gone'.
-- KEYS: RQ's job hash, RQ's list of waiting jobs, RQ's set of queues.
-- ARGV: the job as JSON, with field, value, ... of its record and of RQ's job hash; then fields of the latter with bytes.
-- A job of a batch is queued once, and only while the batch exists and is not cancelled; then 'batch_gone'.
-- Returns 'created', 'revoked', 'owner_limit', 'limit', 'inputs_deleted' if inputs were deleted since they were retained,
-- or '=' and the value of the idempotency key; or 'quota', bytes stored and the time at which there is room.
-- include: end_job
-- include: fair_queue
-- include: image_quota
-- include: job_indices

local job = cjson.decode(ARGV[1])

local function is_full(limit, owner)
  local indices = indices_by_status('queued', owner)
  return limit and redis.call('ZCARD', indices[#indices]) >= limit
end

-- With this check, no job is queued with a key after its revocation.
if job.key_id and redis.call('HEXISTS', keys.API_KEYS, job.key_id) == 0 then return 'revoked' end
if job.batch then
  local status, stopped = unpack(redis.call('HMGET', batch_key(job.batch), 'status', 'stopped'))
  if not status or stopped then return 'batch_gone' end
  if redis.call('EXISTS', key(keys.JOB, {id = job.id})) == 1 then
    -- Its images may have been copied again.
    if job.reused_from then redis.call('ZREM', keys.EXPIRING_JOBS, job.id) end
    return 'created'
  end
end
if job.idempotency_key then
  local earlier = redis.call('GET', job.idempotency_key)
  if earlier then return '=' .. earlier end
end
local source, ended_at = job.reused_from, job.created_at
if source and redis.call('EXISTS', key(keys.JOB, {id = source})) == 0 then return 'source_gone' end
if not source and is_full(job.max_queued_per_owner, job.owner) then return 'owner_limit' end
if not source and is_full(job.max_queued, '') then return 'limit' end
for _, input in ipairs(job.inputs) do
  local generation = job.generations[input]
  if generation and redis.call('HGET', uses_of(input), '#') ~= generation then return 'inputs_deleted' end
end
local sizes = {}
for _, input in ipairs(job.inputs) do sizes[#sizes + 1] = {input, image_bytes(input)} end
local exceeded = find_exceeded(job.owner, sizes, job.max_stored_bytes_per_owner)
if exceeded then return 'quota ' .. exceeded[2] .. ' ' .. exceeded[3] end

redis.call('HSET', key(keys.JOB, {id = job.id}), unpack(job.record))
for _, index in ipairs(indices_of_all(job.owner)) do redis.call('ZADD', index, job.created_at, job.id) end
local status = source and 'succeeded' or 'queued'
for _, index in ipairs(indices_by_status(status, job.owner)) do redis.call('ZADD', index, job.created_at, job.id) end
if job.batch then add_to_batch(job.batch, job.id, job.batch_index) end
if job.deadline_at and not source then redis.call('ZADD', keys.DEADLINES, job.deadline_at, job.id) end
for _, input in ipairs(job.inputs) do
  count_owner(input, job.owner)
  redis.call('HINCRBY', uses_of(input), job.owner, 1)
  redis.call('ZREM', keys.INPUT_IMAGES, input)
end
if job.idempotency_key then
  redis.call('SET', job.idempotency_key, job.fingerprint .. ' ' .. job.id, 'EX', job.idempotency_ttl_s)
end

if source then
  -- Its images were stored before, and would be deleted without it.
  redis.call('ZREM', keys.EXPIRING_JOBS, job.id)
  end_job(job.id, status, job.model, job.owner, job.batch, ended_at)
  if job.batch then move_in_batch(job.batch, job.id, 'queued', status, ended_at) end
  redis.call('PUBLISH', keys.JOB_CHANGES, job.id .. ' ' .. status)
  return 'created'
end

enqueue(job.model, job.id, job.priority, job.owner, job.cost, due_at(job.created_at, job.deadline_at))
redis.call('HSET', KEYS[1], unpack(job.rq))
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if redis.call('RPUSH', KEYS[2], job.id) == 1 then redis.call('SADD', KEYS[3], KEYS[2]) end
redis.call('PUBLISH', keys.JOB_CHANGES, job.id .. ' queued')
return 'created'
