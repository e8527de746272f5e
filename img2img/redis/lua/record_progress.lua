-- Records the progress of running jobs, each if `execution` still owns it.
-- ARGV: for each job its id, execution, step, steps.
-- Returns for each 1, or 0 if another execution owns the job or it is not running.
-- include: keys

local function record_progress(id, execution, step, steps)
  local record = key(keys.JOB, {id = id})
  local status, owning_execution, last_step = unpack(redis.call('HMGET', record, 'status', 'execution', 'step'))
  if status ~= 'running' or owning_execution ~= execution then return 0 end
  if last_step ~= step then
    redis.call('HSET', record, 'step', step, 'steps', steps)
    redis.call('HINCRBY', record, 'revision', 1)
    redis.call('PUBLISH', keys.JOB_CHANGES, id)
  end
  return 1
end

local recorded = {}
for i = 1, #ARGV, 4 do
  recorded[#recorded + 1] = record_progress(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
end
return recorded
