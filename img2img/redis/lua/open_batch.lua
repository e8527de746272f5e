-- Begins a batch, unless its idempotency key is in use or its jobs exceed a limit.
-- ARGV: the batch as JSON; field, value, ... of the record.
-- Returns 'created', 'revoked', 'owner_limit', 'limit', or '=' and the value of the idempotency key.
-- include: job_indices

local batch = cjson.decode(ARGV[1])

local function exceeds(limit, owner)
  local indices = indices_by_status('queued', owner)
  return limit and redis.call('ZCARD', indices[#indices]) + batch.total > limit
end

if batch.key_id and redis.call('HEXISTS', keys.API_KEYS, batch.key_id) == 0 then return 'revoked' end
if batch.idempotency_key then
  local earlier = redis.call('GET', batch.idempotency_key)
  if earlier then return '=' .. earlier end
end
if exceeds(batch.max_queued_per_owner, batch.owner) then return 'owner_limit' end
if exceeds(batch.max_queued, '') then return 'limit' end

redis.call('HSET', key(keys.BATCH, {id = batch.id}), unpack(ARGV, 2))
redis.call('ZADD', keys.BATCHES, batch.created_at, batch.id)
if batch.owner ~= '' then
  redis.call('ZADD', key(keys.BATCHES_OF_OWNER, {owner = batch.owner}), batch.created_at, batch.id)
end
-- If the API server dies before the batch is complete, its jobs are deleted then.
redis.call('ZADD', keys.EXPIRING_BATCHES, batch.delete_at, batch.id)
if batch.idempotency_key then
  redis.call('SET', batch.idempotency_key, batch.fingerprint .. ' ' .. batch.id, 'EX', batch.idempotency_ttl_s)
end
return 'created'
