-- Ends an owner's upload of an image, or those of all owners. The image is due for deletion after the last one.
-- ARGV: blob key, 'all' or 'one', owner. Returns 1, or 0 if there is no such upload.
-- include: keys

local blob, whose, owner = ARGV[1], ARGV[2], ARGV[3]
local owners = key(keys.UPLOAD_OWNERS, {key = blob})
local removed
if whose == 'all' then removed = redis.call('DEL', owners) else removed = redis.call('ZREM', owners, owner) end
if removed == 0 then return 0 end
local last = redis.call('ZRANGE', owners, -1, -1, 'WITHSCORES')
redis.call('ZADD', keys.INPUT_IMAGES, last[2] or 0, blob)
return 1
