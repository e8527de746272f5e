-- Included by other scripts: the order of a model's waiting jobs. img2img/redis/fair_queue.py explains the order.
--
-- A level is a priority, or RETURNED. Redis keeps for each level with waiting jobs:
-- - a sorted set of the owners with waiting jobs, whose score is their turn;
-- - for each of these owners, a sorted set of jobs, whose score is the cost of all jobs that the owner queued before;
-- - in the hash of totals: `{level} jobs` and `{level} cost` of the waiting jobs; `{level} cost {owner}`;
--   `{level} end {owner}`, the score of the owner's next job; and `{level} streak`, the number of jobs taken in a row
--   while lower levels waited. A negative streak is the number of jobs to take before counting starts.
-- A level without waiting jobs has no keys and no fields.
-- include: keys

local LEVELS = {'returned', 'high', 'normal', 'low'}
local RETURNED = 'returned'
local STREAK_LIMIT = 7

local function owners_key(model, level)
  return key(keys.FAIR_QUEUE_OWNERS, {model = model, level = level})
end

local function jobs_key(model, level, owner)
  return key(keys.FAIR_QUEUE_JOBS, {model = model, level = level, owner = owner})
end

local function totals_key(model)
  return key(keys.FAIR_QUEUE_TOTALS, {model = model})
end

local function has_jobs(model, level)
  return redis.call('EXISTS', owners_key(model, level)) == 1
end

local function move_to_last_turn(owners, owner)
  local last = redis.call('ZRANGE', owners, -1, -1, 'WITHSCORES')
  redis.call('ZADD', owners, (last[2] or 0) + 1, owner)
end

local function has_jobs_below(model, level)
  local below = false
  for _, other in ipairs(LEVELS) do
    if below and has_jobs(model, other) then return true end
    below = below or other == level
  end
  return false
end

-- When the first job below a level arrives, it must not overtake the jobs that already wait on that level.
local function start_streaks_above(model, level)
  for _, above in ipairs(LEVELS) do
    if level == RETURNED or above == level then return end
    if above ~= RETURNED and has_jobs(model, above) and not has_jobs_below(model, above) then
      local totals = totals_key(model)
      redis.call('HSET', totals, above .. ' streak', -redis.call('HGET', totals, above .. ' jobs'))
    end
  end
end

local function enqueue(model, id, level, owner, cost, at_front)
  local owners, jobs, totals = owners_key(model, level), jobs_key(model, level, owner), totals_key(model)
  start_streaks_above(model, level)
  if at_front then
    local first = redis.call('ZRANGE', jobs, 0, 0, 'WITHSCORES')
    redis.call('ZADD', jobs, (first[2] or 0) - cost, id)
  else
    local after = redis.call('HINCRBYFLOAT', totals, level .. ' end ' .. owner, cost)
    redis.call('ZADD', jobs, after - cost, id)
  end
  if not redis.call('ZSCORE', owners, owner) then move_to_last_turn(owners, owner) end
  redis.call('HINCRBY', totals, level .. ' jobs', 1)
  redis.call('HINCRBYFLOAT', totals, level .. ' cost', cost)
  redis.call('HINCRBYFLOAT', totals, level .. ' cost ' .. owner, cost)
end

local function remove_from_level(model, id, level, owner, cost)
  local owners, jobs, totals = owners_key(model, level), jobs_key(model, level, owner), totals_key(model)
  if redis.call('ZREM', jobs, id) == 0 then return false end
  redis.call('HINCRBY', totals, level .. ' jobs', -1)
  redis.call('HINCRBYFLOAT', totals, level .. ' cost', -cost)
  redis.call('HINCRBYFLOAT', totals, level .. ' cost ' .. owner, -cost)
  if redis.call('EXISTS', jobs) == 0 then
    redis.call('HDEL', totals, level .. ' end ' .. owner, level .. ' cost ' .. owner)
    redis.call('ZREM', owners, owner)
  end
  if redis.call('EXISTS', owners) == 0 then
    redis.call('HDEL', totals, level .. ' jobs', level .. ' cost', level .. ' streak')
  end
  return true
end

local function remove(model, id, priority, owner, cost)
  return remove_from_level(model, id, RETURNED, '', cost) or remove_from_level(model, id, priority, owner, cost)
end
