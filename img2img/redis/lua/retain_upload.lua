-- Keeps an uploaded image at least until a given time, unless it exceeds a quota.
-- ARGV: time, owner, most bytes of the owner or '', most bytes in all or '', blob key, bytes.
-- Returns {'ok'}, {'deleting'} if an earlier copy of the image is being deleted, or as find_exceeded.
-- include: image_quota

local kept_until, owner, blob, bytes = ARGV[1], ARGV[2], ARGV[5], tonumber(ARGV[6])
if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = blob})) == 1 then return {'deleting'} end
local exceeded = find_exceeded(owner, {{blob, bytes}}, tonumber(ARGV[3]), tonumber(ARGV[4]))
if exceeded then return exceeded end
count_image(blob, bytes)
count_owner(blob, owner)
redis.call('ZADD', uploads_of(blob), 'GT', kept_until, owner)
schedule_deletion(blob)
return {'ok'}
