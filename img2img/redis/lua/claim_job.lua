-- Moves the next job of a model from RQ's list of waiting jobs to RQ's intermediate list. A job is always in one of them.
-- KEYS: RQ's list of waiting jobs, RQ's intermediate list. ARGV: model;
--   a time to take a job beyond the slots of a worker: only while jobs of high priority wait, or if it has a deadline
--   before this time; and none of lost workers.
-- Returns the job's id, or nothing if none is waiting.
--
-- A job that is in RQ's list but not in the fair queue (pushed by RQ's own tools) is taken once it is the first of the
-- list. A job that is in the fair queue but not in RQ's list is dropped here; the reaper finds it.
-- include: fair_queue

local list, intermediate, model, due_before = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])

local function field(id, name)
  return redis.call('HGET', key(keys.JOB, {id = id}), name)
end

local function is_in_fair_queue(id)
  return redis.call('ZSCORE', jobs_key(model, RETURNED, ''), id)
    or redis.call('ZSCORE', jobs_key(model, field(id, 'priority') or '', field(id, 'owner') or ''), id)
end

-- The owner and the job of a level that are next.
local function head(level)
  local owner, start = unpack(redis.call('ZRANGE', owners_key(model, level), 0, 0, 'WITHSCORES'))
  return owner, redis.call('ZRANGE', jobs_key(model, level, owner), 0, 0)[1], tonumber(start)
end

-- The level whose turn is first, and its tag. A high job that starts when a lower one ends comes after it.
local function next_level()
  if has_jobs(model, RETURNED) and not due_before then return RETURNED end
  local found, found_tag, first_turn
  for _, level in ipairs(LEVELS) do
    if level ~= RETURNED and has_jobs(model, level) then
      local _, id = head(level)
      local tag = total(model, level .. ' tag')
      local turn = turn_of(level, tag, work_of(field(id, 'cost')))
      if not found or turn < first_turn or (turn == first_turn and found == 'high') then
        found, found_tag, first_turn = level, tag, turn
      end
    end
  end
  return found, found_tag
end

-- LREM searches from one end of RQ's list, so it should begin at the end that is closer by creation time.
local function is_closer_to_end(id)
  local function created_at(job) return tonumber(field(job, 'created_at') or 0) end
  local oldest, newest = redis.call('LINDEX', list, 0), redis.call('LINDEX', list, -1)
  return created_at(id) - created_at(oldest) > created_at(newest) - created_at(id)
end

local first = redis.call('LINDEX', list, 0)
if not first or (due_before and not has_priorities(model)) then return false end
if not due_before and not is_in_fair_queue(first) then return redis.call('LMOVE', list, intermediate, 'LEFT', 'RIGHT') end

while true do
  local level, tag = next_level()
  if not level then return false end
  local owner, id, start = head(level)
  if due_before and not has_jobs(model, 'high') and (tonumber(field(id, 'deadline_at')) or math.huge) >= due_before then
    return false
  end
  local cost = field(id, 'cost')
  remove_from_level(model, id, level, owner, cost)
  if redis.call('LREM', list, is_closer_to_end(id) and -1 or 1, id) == 1 then
    redis.call('RPUSH', intermediate, id)
    charge(model, level, owner, work_of(cost), start, tag)
    return id
  end
end
