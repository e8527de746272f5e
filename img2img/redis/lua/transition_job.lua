-- Moves a job to another status, if its present status allows that and `execution` still owns it.
-- ARGV: id, new status, statuses it may come from (separated by commas), owning execution or '', time of the end or '',
--   '1' to count an attempt, then field, value, ... to set.
-- Returns 'ok', or the reason against it: 'missing', 'lost' or the present status.
-- include: fair_queue
-- include: job_batches
-- include: job_indices

local id, to, sources, execution, ended_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record = key(keys.JOB, {id = id})
local from, owning_execution, owner, created_at = unpack(
  redis.call('HMGET', record, 'status', 'execution', 'owner', 'created_at'))
local model, priority, cost, batch = unpack(redis.call('HMGET', record, 'model', 'priority', 'cost', 'batch_id'))
owner, model = owner or '', model or ''

local function contains(list, item)
  return string.find(',' .. list .. ',', ',' .. item .. ',', 1, true)
end

-- The event is a copy of the record, because the record may expire before it is delivered.
local function queue_webhook()
  local statuses = redis.call('HGET', record, 'webhook_on')
  if not statuses or not contains(statuses, to) then return end
  redis.call('COPY', record, key(keys.OUTBOX_EVENT, {id = id}))
  redis.call('ZADD', keys.OUTBOX, ended_at, id)
  redis.call('HSET', record, 'delivery', '{"status":"pending","attempts":0}')
end

local function finish()
  -- A job of a batch expires with the batch.
  if not batch or redis.call('EXISTS', batch_key(batch)) == 0 then
    local kept_until = string.format('%.6f', tonumber(ended_at) + (redis.call('HGET', record, 'result_ttl_s') or 0))
    redis.call('HSET', record, 'expires_at', kept_until)
    redis.call('ZADD', keys.EXPIRING_JOBS, kept_until, id)
  end
  redis.call('ZREM', keys.DEADLINES, id)
  redis.call('HINCRBY', keys.ENDED_JOBS, to .. ' ' .. model, 1)
  queue_webhook()
end

if not from then return 'missing' end
if not contains(sources, from) then return from end
if execution ~= '' and owning_execution ~= execution then return 'lost' end

redis.call('HSET', record, 'status', to, unpack(ARGV, 7))
redis.call('HINCRBY', record, 'revision', 1)
if ARGV[6] == '1' then redis.call('HINCRBY', record, 'attempts', 1) end
for _, index in ipairs(indices_by_status(from, owner)) do redis.call('ZREM', index, id) end
-- A record that cannot be read still ends, so its fields may be missing.
for _, index in ipairs(indices_by_status(to, owner)) do redis.call('ZADD', index, created_at or 0, id) end
-- A job that is released joins the fair queue again when RQ's list has it.
if from == 'queued' then remove(model, id, priority or '', owner, cost) end
if ended_at ~= '' then finish() end
if to == 'running' and redis.call('HEXISTS', record, 'webhook_interim') == 1 then
  redis.call('ZADD', keys.INTERIM_EVENTS, 0, id)
end
if batch then move_in_batch(batch, id, from, to, ended_at) end
redis.call('PUBLISH', keys.JOB_CHANGES, id .. ' ' .. to)
return 'ok'
