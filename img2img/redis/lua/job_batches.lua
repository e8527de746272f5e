-- Included by other scripts: the record of a batch counts its jobs by status. It ends with the last of them.
-- include: keys

local function batch_key(id)
  return key(keys.BATCH, {id = id})
end

local function add_to_batch(batch, id, index)
  redis.call('ZADD', key(keys.BATCH_JOBS, {id = batch}), index, id)
  redis.call('HINCRBY', batch_key(batch), 'queued', 1)
end

-- Ends a batch whose jobs were all queued and have all ended.
local function end_batch(batch, now)
  local record = batch_key(batch)
  local status, queued, running, ttl, has_webhook = unpack(
    redis.call('HMGET', record, 'status', 'queued', 'running', 'result_ttl_s', 'webhook_host'))
  if status ~= 'running' or tonumber(queued or 0) > 0 or tonumber(running or 0) > 0 then return end
  local expires_at = string.format('%.6f', tonumber(now) + ttl)
  redis.call('HSET', record, 'status', 'ended', 'finished_at', now, 'expires_at', expires_at)
  redis.call('ZADD', keys.EXPIRING_BATCHES, expires_at, batch)
  if not has_webhook then return end
  redis.call('COPY', record, key(keys.OUTBOX_EVENT, {id = batch}))
  redis.call('ZADD', keys.OUTBOX, now, batch)
  redis.call('HSET', record, 'delivery', '{"status":"pending","attempts":0}')
end

-- Counts a job that changes from one status to another. ended_at: '' unless it has ended.
local function move_in_batch(batch, id, from, to, ended_at)
  local record = batch_key(batch)
  if redis.call('EXISTS', record) == 0 then return end
  redis.call('HINCRBY', record, from, -1)
  redis.call('HINCRBY', record, to, 1)
  if ended_at ~= '' then
    redis.call('RPUSH', key(keys.BATCH_ENDED_JOBS, {id = batch}), id)
    end_batch(batch, ended_at)
  end
  redis.call('PUBLISH', keys.JOB_CHANGES, batch)
end

-- Removes a job that is deleted.
local function remove_from_batch(batch, id, status)
  redis.call('ZREM', key(keys.BATCH_JOBS, {id = batch}), id)
  move_in_batch(batch, id, status, 'deleted', '')
end
