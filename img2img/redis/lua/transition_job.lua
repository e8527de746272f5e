-- Moves a job to another status, if its present status allows that and `execution` still owns it.
-- ARGV: id, new status, statuses it may come from (separated by commas), owning execution or '', time of the end or '',
--   '1' to count an attempt, then field, value, ... to set.
-- Returns 'ok', or the reason against it: 'missing', 'lost' or the present status.
-- include: end_job
-- include: fair_queue
-- include: job_indices
-- include: when_full

local id, to, sources, execution, ended_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record = key(keys.JOB, {id = id})
local from, owning_execution, owner, created_at = unpack(
  redis.call('HMGET', record, 'status', 'execution', 'owner', 'created_at'))
local model, priority, cost, batch = unpack(redis.call('HMGET', record, 'model', 'priority', 'cost', 'batch_id'))
owner, model = owner or '', model or ''

if not from then return 'missing' end
if not is_listed(sources, from) then return from end
if execution ~= '' and owning_execution ~= execution then return 'lost' end

if to == 'cancelled' then allow_when_full() end
redis.call('HSET', record, 'status', to, unpack(ARGV, 7))
redis.call('HINCRBY', record, 'revision', 1)
if ARGV[6] == '1' then redis.call('HINCRBY', record, 'attempts', 1) end
for _, index in ipairs(indices_by_status(from, owner)) do redis.call('ZREM', index, id) end
-- A record that cannot be read still ends, so its fields may be missing.
for _, index in ipairs(indices_by_status(to, owner)) do redis.call('ZADD', index, created_at or 0, id) end
-- A job that is released joins the fair queue again when RQ's list has it.
if from == 'queued' then remove(model, id, priority or '', owner, cost) end
if ended_at ~= '' then end_job(id, to, model, owner, batch, ended_at) end
if to == 'running' and redis.call('HEXISTS', record, 'webhook_interim') == 1 then
  redis.call('ZADD', keys.INTERIM_EVENTS, 0, id)
end
if batch then move_in_batch(batch, id, from, to, ended_at) end
redis.call('PUBLISH', keys.JOB_CHANGES, id .. ' ' .. to)
return 'ok'
