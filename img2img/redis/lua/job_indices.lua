-- Included by other scripts: the sorted sets that list a job with a given status.
-- include: keys

local function indices_by_status(status, owner)
  local indices = {key(keys.JOBS_BY_STATUS, {status = status})}
  if owner ~= '' then indices[2] = key(keys.JOBS_OF_OWNER_BY_STATUS, {owner = owner, status = status}) end
  return indices
end

local function indices_of_all(owner)
  local indices = {keys.JOBS}
  if owner ~= '' then indices[2] = key(keys.JOBS_OF_OWNER, {owner = owner}) end
  return indices
end
