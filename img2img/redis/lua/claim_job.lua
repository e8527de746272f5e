-- Moves the next job of a model from RQ's list of waiting jobs to RQ's intermediate list. A job is always in one of them.
-- KEYS: RQ's list of waiting jobs, RQ's intermediate list. ARGV: model.
-- Returns the job's id, or nothing if none is waiting.
--
-- A job that is in RQ's list but not in the fair queue (pushed by RQ's own tools) is taken once it is the first of the
-- list. A job that is in the fair queue but not in RQ's list is dropped here; the reaper finds it.
-- include: fair_queue

local list, intermediate, model = KEYS[1], KEYS[2], ARGV[1]

local function field(id, name)
  return redis.call('HGET', key(keys.JOB, {id = id}), name)
end

local function is_in_fair_queue(id)
  return redis.call('ZSCORE', jobs_key(model, RETURNED, ''), id)
    or redis.call('ZSCORE', jobs_key(model, field(id, 'priority') or '', field(id, 'owner') or ''), id)
end

-- The highest level with waiting jobs, except that a level at its streak limit lets a lower one pass.
local function next_level()
  local found
  for _, level in ipairs(LEVELS) do
    if has_jobs(model, level) then
      found = level
      if tonumber(redis.call('HGET', totals_key(model), level .. ' streak') or 0) < STREAK_LIMIT then break end
    end
  end
  return found
end

-- LREM searches from one end of RQ's list, so it should begin at the end that is closer by creation time.
local function is_closer_to_end(id)
  local function created_at(job) return tonumber(field(job, 'created_at') or 0) end
  local oldest, newest = redis.call('LINDEX', list, 0), redis.call('LINDEX', list, -1)
  return created_at(id) - created_at(oldest) > created_at(newest) - created_at(id)
end

local function count_streak(taken)
  if taken == RETURNED then return end
  local totals = totals_key(model)
  for _, above in ipairs(LEVELS) do
    if above == taken then break end
    redis.call('HDEL', totals, above .. ' streak')
  end
  if has_jobs(model, taken) and has_jobs_below(model, taken) then
    redis.call('HINCRBY', totals, taken .. ' streak', 1)
  else
    redis.call('HDEL', totals, taken .. ' streak')
  end
end

local first = redis.call('LINDEX', list, 0)
if not first then return false end
if not is_in_fair_queue(first) then return redis.call('LMOVE', list, intermediate, 'LEFT', 'RIGHT') end

while true do
  local level = next_level()
  if not level then return false end
  local owners = owners_key(model, level)
  local owner = redis.call('ZRANGE', owners, 0, 0)[1]
  local id = redis.call('ZRANGE', jobs_key(model, level, owner), 0, 0)[1]
  remove_from_level(model, id, level, owner, tonumber(field(id, 'cost') or 0))
  if redis.call('LREM', list, is_closer_to_end(id) and -1 or 1, id) == 1 then
    redis.call('RPUSH', intermediate, id)
    if redis.call('ZSCORE', owners, owner) then move_to_last_turn(owners, owner) end
    count_streak(level)
    return id
  end
end
