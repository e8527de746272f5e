-- Included by other scripts: the order of a model's waiting jobs. img2img/redis/fair_queue.py explains the order.
--
-- A level is a priority, or RETURNED. Work is in pixel-steps, a whole number, so that sums are exact. Redis keeps for
-- each level with waiting jobs:
-- - a sorted set of the owners with waiting jobs, whose score is the virtual time at which their first job starts;
-- - for each of these owners, a sorted set of jobs, by the time at which they are due. The difference of two scores is
--   the work of the jobs between;
-- - a sorted set of the owners without waiting jobs whose last job ends after the level's clock, by this time;
-- - in the hash of totals: `{level} jobs` and `{level} work` of the waiting jobs; `{level} clock`, the virtual time at
--   which the last job that was taken started; `{level} tag`, the virtual time that its priority has used;
--   `{level} next {owner}`, the score of the owner's next job. `tag` is the highest `{level} tag`.
-- A level without waiting jobs has no keys and no fields.
-- include: keys

local LEVELS = {'returned', 'high', 'normal', 'low'}
local RETURNED = 'returned'
-- Virtual time of the priorities by unit of work.
local PACE = {high = 1, normal = 7, low = 49}
local PIXEL_STEPS = 1e6
-- With more waiting jobs of one owner on both sides of a cancelled job, its gap remains, and positions are estimates.
local MAX_MOVED = 10000
-- A job without a deadline is due so many seconds after its submission.
local DUE_S = 600

local function owners_key(model, level)
  return key(keys.FAIR_QUEUE_OWNERS, {model = model, level = level})
end

local function jobs_key(model, level, owner)
  return key(keys.FAIR_QUEUE_JOBS, {model = model, level = level, owner = owner})
end

local function idle_key(model, level)
  return key(keys.FAIR_QUEUE_IDLE, {model = model, level = level})
end

local function totals_key(model)
  return key(keys.FAIR_QUEUE_TOTALS, {model = model})
end

-- cost: megapixel-steps, as in the job record.
local function work_of(cost)
  return math.max(1, math.floor((tonumber(cost) or 0) * PIXEL_STEPS + 0.5))
end

-- The virtual time by which the next job of a priority is compared with those of others: high jobs go first, and others
-- wait until their share has paid for them.
local function turn_of(level, tag, work)
  return level == 'high' and tag or tag + work * PACE[level]
end

local function has_jobs(model, level)
  return redis.call('EXISTS', owners_key(model, level)) == 1
end

local function has_priorities(model)
  return has_jobs(model, 'high') or has_jobs(model, 'normal') or has_jobs(model, 'low')
end

local function total(model, name)
  return tonumber(redis.call('HGET', totals_key(model), name) or 0)
end

-- The virtual time at which an owner without waiting jobs would start. Time without jobs gives no credit.
local function start_of(model, level, owner)
  return math.max(total(model, level .. ' clock'), tonumber(redis.call('ZSCORE', idle_key(model, level), owner) or 0))
end

local function due_at(created_at, deadline_at)
  return math.min((tonumber(created_at) or 0) + DUE_S, tonumber(deadline_at) or math.huge)
end

-- The number of an owner's waiting jobs that are due no later than a time. Jobs of equal time are in order of arrival.
local function rank_of_due(jobs, due)
  local function is_later(rank)
    local record = key(keys.JOB, {id = redis.call('ZRANGE', jobs, rank, rank)[1]})
    return due_at(unpack(redis.call('HMGET', record, 'created_at', 'deadline_at'))) > due
  end
  local low, high = 0, redis.call('ZCARD', jobs)
  -- Most jobs come last.
  if high == 0 or not is_later(high - 1) then return high end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_later(middle) then high = middle else low = middle + 1 end
  end
  -- With this many jobs on both sides it comes nearer to the end.
  local count = redis.call('ZCARD', jobs)
  if math.min(low, count - low) > MAX_MOVED then return count - MAX_MOVED end
  return low
end

-- Moves the jobs on the shorter side of a rank, and returns the score of a job between both sides.
local function make_room(model, level, owner, rank, work)
  local jobs, next_score = jobs_key(model, level, owner), level .. ' next ' .. owner
  local count = redis.call('ZCARD', jobs)
  if rank == count then return redis.call('HINCRBY', totals_key(model), next_score, work) - work end
  local score = tonumber(redis.call('ZRANGE', jobs, rank, rank, 'WITHSCORES')[2])
  if rank < count - rank then
    if rank > 0 then
      for _, id in ipairs(redis.call('ZRANGE', jobs, 0, rank - 1)) do redis.call('ZINCRBY', jobs, -work, id) end
    end
    return score - work
  end
  for _, id in ipairs(redis.call('ZRANGE', jobs, rank, -1)) do redis.call('ZINCRBY', jobs, work, id) end
  redis.call('HINCRBY', totals_key(model), next_score, work)
  return score
end

-- due: the time at which the job is due; nil for a job that comes before all others.
local function enqueue(model, id, level, owner, cost, due)
  local owners, jobs, totals = owners_key(model, level), jobs_key(model, level, owner), totals_key(model)
  local work = work_of(cost)
  local rank = due and rank_of_due(jobs, due) or 0
  redis.call('ZADD', jobs, make_room(model, level, owner, rank, work), id)
  if not redis.call('ZSCORE', owners, owner) then
    redis.call('ZADD', owners, start_of(model, level, owner), owner)
    redis.call('ZREM', idle_key(model, level), owner)
  end
  if redis.call('HINCRBY', totals, level .. ' jobs', 1) == 1 and level ~= RETURNED then
    redis.call('HSET', totals, level .. ' tag', total(model, 'tag'))
  end
  redis.call('HINCRBY', totals, level .. ' work', work)
  redis.call('PUBLISH', key(keys.WAITING_JOBS, {model = model}), id)
end

-- Moves the jobs on the shorter side of a job that leaves, so that no gap remains between the scores.
local function close_gap(model, level, owner, rank, work)
  local jobs = jobs_key(model, level, owner)
  local after = redis.call('ZCARD', jobs) - 1 - rank
  if math.min(rank, after) > MAX_MOVED then return end
  local first, last, by = rank + 1, -1, -work
  if rank < after then first, last, by = 0, rank - 1, work end
  if by < 0 then redis.call('HINCRBY', totals_key(model), level .. ' next ' .. owner, by) end
  if math.min(rank, after) == 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', jobs, first, last)) do redis.call('ZINCRBY', jobs, by, id) end
end

local function clear_empty_level(model, level)
  local totals = totals_key(model)
  local suffixes = {' jobs', ' work', ' clock', ' tag'}
  for i, suffix in ipairs(suffixes) do suffixes[i] = level .. suffix end
  redis.call('HDEL', totals, unpack(suffixes))
  redis.call('DEL', idle_key(model, level))
  if not has_priorities(model) then redis.call('HDEL', totals, 'tag') end
end

local function remove_from_level(model, id, level, owner, cost)
  local owners, jobs, totals = owners_key(model, level), jobs_key(model, level, owner), totals_key(model)
  local rank, work = redis.call('ZRANK', jobs, id), work_of(cost)
  if not rank then return false end
  close_gap(model, level, owner, rank, work)
  redis.call('ZREM', jobs, id)
  redis.call('HINCRBY', totals, level .. ' jobs', -1)
  redis.call('HINCRBY', totals, level .. ' work', -work)
  if redis.call('EXISTS', jobs) == 0 then
    local start = tonumber(redis.call('ZSCORE', owners, owner) or 0)
    redis.call('HDEL', totals, level .. ' next ' .. owner)
    redis.call('ZREM', owners, owner)
    if start > total(model, level .. ' clock') then redis.call('ZADD', idle_key(model, level), start, owner) end
  end
  if not has_jobs(model, level) then clear_empty_level(model, level) end
  return true
end

-- Charges a job that was taken from a level to its owner and its priority.
-- start, tag: the virtual time of the owner and of the level before.
local function charge(model, level, owner, work, start, tag)
  if level == RETURNED or not has_priorities(model) then return end
  local owners, idle, totals = owners_key(model, level), idle_key(model, level), totals_key(model)
  tag = tag + work * PACE[level]
  redis.call('HSET', totals, 'tag', math.max(tag, total(model, 'tag')))
  if not has_jobs(model, level) then return end
  redis.call('HSET', totals, level .. ' tag', tag, level .. ' clock', start)
  redis.call('ZREMRANGEBYSCORE', idle, '-inf', start)
  redis.call('ZADD', redis.call('ZSCORE', owners, owner) and owners or idle, start + work, owner)
end

local function remove(model, id, priority, owner, cost)
  return remove_from_level(model, id, RETURNED, '', cost) or remove_from_level(model, id, priority, owner, cost)
end
