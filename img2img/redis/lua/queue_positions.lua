-- Counts the jobs ahead of waiting jobs, or of jobs that would be queued now.
-- ARGV: for each job its model, id or '' for a new one, priority, owner, cost.
-- Returns for each the number of jobs ahead and, as text, their cost; nothing if the job is not waiting.
-- include: fair_queue

local model, id, level, owner, cost

local function total(name)
  return tonumber(redis.call('HGET', totals_key(model), name) or 0)
end

-- Returns the number and the cost of an owner's first `count` jobs. Scores still include the cost of jobs that were
-- cancelled while they waited. The sums do not, so the difference is spread evenly over the owner's jobs.
-- own_cost: cost of the job of which the position is asked, if it is the owner's; it is known exactly.
local function first_jobs(other, count, own_cost)
  local jobs = jobs_key(model, level, other)
  local waiting = redis.call('ZCARD', jobs)
  if count <= 0 then return 0, 0 end
  if count >= waiting then return waiting, total(level .. ' cost ' .. other) end
  local first = redis.call('ZRANGE', jobs, 0, 0, 'WITHSCORES')[2]
  local next = redis.call('ZRANGE', jobs, count, count, 'WITHSCORES')[2]
  local scored = total(level .. ' end ' .. other) - first - own_cost
  local share = scored > 0 and (total(level .. ' cost ' .. other) - own_cost) / scored or 1
  return count, (next - first) * math.min(share, 1)
end

-- Jobs of the own level: owners take turns, so those with an earlier turn have one more job ahead.
local function jobs_of_level()
  local jobs = jobs_key(model, level, owner)
  local rank
  if id == '' then rank, cost = redis.call('ZCARD', jobs), 0 else rank = redis.call('ZRANK', jobs, id) end
  if not rank then return nil end
  local count, work = first_jobs(owner, rank, cost)
  local rounds = rank + 1
  for _, other in ipairs(redis.call('ZRANGE', owners_key(model, level), 0, -1)) do
    if other == owner then
      rounds = rank
    else
      local other_count, other_work = first_jobs(other, rounds, 0)
      count, work = count + other_count, work + other_work
    end
  end
  return count, work
end

-- Jobs of lower levels: one passes whenever the level reaches its streak limit. Its cost is taken as their mean.
local function add_jobs_below(depth, count, work)
  if level == RETURNED then return count, work end
  local below_count, below_work = 0, 0
  for i = depth + 1, #LEVELS do
    below_count, below_work = below_count + total(LEVELS[i] .. ' jobs'), below_work + total(LEVELS[i] .. ' cost')
  end
  local passes = math.min(below_count, math.floor((total(level .. ' streak') + count) / STREAK_LIMIT))
  if passes <= 0 then return count, work end
  return count + passes, work + below_work * passes / below_count
end

-- Jobs of higher levels: STREAK_LIMIT for each job of the lower one, as long as there are any.
local function add_jobs_above(depth, count, work)
  for i = depth - 1, 1, -1 do
    local above = LEVELS[i]
    local waiting = total(above .. ' jobs')
    local before = waiting
    if above ~= RETURNED and (id ~= '' or has_jobs_below(model, above)) then
      before = math.min(waiting, (count + 1) * STREAK_LIMIT - total(above .. ' streak'))
    end
    if before > 0 then count, work = count + before, work + total(above .. ' cost') * before / waiting end
  end
  return count, work
end

local function position()
  if id ~= '' and redis.call('ZSCORE', jobs_key(model, RETURNED, ''), id) then level, owner = RETURNED, '' end
  local count, work = jobs_of_level()
  if not count then return false end
  local depth
  for i, name in ipairs(LEVELS) do if name == level then depth = i end end
  count, work = add_jobs_below(depth, count, work)
  count, work = add_jobs_above(depth, count, work)
  return {count, string.format('%.17g', math.max(work, 0))}
end

local positions = {}
for i = 1, #ARGV, 5 do
  model, id, level, owner, cost = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  positions[#positions + 1] = position()
end
return positions
