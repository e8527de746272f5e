-- Allows an image to be stored again after its blob was deleted.
-- ARGV: blob key.
-- include: keys

local blob = ARGV[1]
redis.call('DEL', key(keys.INPUT_IMAGE_DELETION, {key = blob}))
-- It exists already if the deletion has taken too long.
local uses, owners = key(keys.INPUT_IMAGE_USES, {key = blob}), key(keys.UPLOAD_OWNERS, {key = blob})
if redis.call('EXISTS', uses, owners) == 0 then redis.call('ZREM', keys.INPUT_IMAGES, blob) end
