-- Included by other scripts. The loader replaces keys.NAME by the name in img2img/redis/keys.py.

-- Fills in a key template: key(keys.JOB, {id = id}).
local function key(template, fields)
  return (string.gsub(template, '{(%w+)}', fields))
end
