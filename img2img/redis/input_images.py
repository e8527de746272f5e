"""Which input pictures are kept: those of jobs that have not ended, and those sent or used a short while ago.

A picture goes by its key in the store. Keys are made of content hashes, so jobs share pictures. A sweep takes a picture
out of Redis before it deletes the blob; a submit of the same picture that comes between the two waits for its end, and
stores the picture anew.

A hash is no secret: it can be learnt without the picture. So the owners that sent a picture are noted with it, kept and
deleted as it is, and only they can refer to it.
"""

import time
from collections.abc import Sequence
from copy import copy
from typing import Self

from redis import Redis
from rq.utils import as_text

from img2img.errors import Unavailable

INPUTS = "i2i:inputs"  # sorted set: store keys of input pictures, by when it may go if no job needs it
INPUT_USES = "i2i:inputs:uses"  # hash: store key -> jobs that need it and have not ended
OWNERS = "i2i:inputs:of:{key}"  # sorted set, for it takes less memory than a set: owners, by when they sent this
BEING_DELETED = "i2i:inputs:deleted:{key}"  # string with a time to live: its blob is being deleted

DELETING_S = 60  # longer than deleting a blob takes; if the sweeper dies, the picture can be sent again after this
WAIT_S = 1.0  # how long a submit waits for a deletion to end

# KEYS: inputs, being deleted, owners. ARGV: store key, kept until, owner, now. Answers whether its blob is just being
# deleted.
_HOLD = """
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[3])
return redis.call('EXISTS', KEYS[2])
"""

# Prolongs those of the pictures that an owner sent. KEYS: inputs, then the owners of each picture. ARGV: kept until,
# "all" or "one", the owner, then the store key of each picture. Answers their store keys.
_USE = """
local usable = {}
for i = 2, #KEYS do
  local sent
  if ARGV[2] == 'all' then
    sent = redis.call('EXISTS', KEYS[i]) == 1
  else
    sent = redis.call('ZSCORE', KEYS[i], ARGV[3])
  end
  if sent then
    redis.call('ZADD', KEYS[1], 'GT', ARGV[1], ARGV[i + 2])
    usable[#usable + 1] = ARGV[i + 2]
  end
end
return usable
"""

# Takes the picture out if its time is over and no job needs it. KEYS: inputs, uses, being deleted, owners. ARGV: store
# key, now, seconds that the deletion may take.
_TAKE = """
local kept_until = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not kept_until or tonumber(kept_until) > tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end  -- the end of its last job puts it back
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[3], 1, 'EX', ARGV[3])
return 1
"""


class InputImageRefs:
    """The input pictures that one Redis knows of: all of them, or those that one owner sent. Their blobs are in the
    store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owner: str | None = None  # None: uses the pictures of all
        self._hold_script = redis.register_script(_HOLD)
        self._use_script = redis.register_script(_USE)
        self._take_script = redis.register_script(_TAKE)

    def visible_to(self, owner: str | None) -> Self:
        """The same pictures, of which `use` gives only those that this owner sent; None uses all."""
        seen = copy(self)
        seen._owner = owner
        return seen

    def retain(self, key: str, keep_s: float, owner: str) -> None:
        """Keeps a picture that this owner sent for keep_s seconds. Call it before the picture is stored.

        Raises Unavailable.
        """
        script_keys = [INPUTS, BEING_DELETED.format(key=key), OWNERS.format(key=key)]
        give_up_at = time.monotonic() + WAIT_S
        while self._hold_script(keys=script_keys, args=[key, time.time() + keep_s, owner, time.time()]):
            if time.monotonic() > give_up_at:
                raise Unavailable("An earlier copy of this picture is being deleted; try again in a moment.")
            time.sleep(0.02)

    def renew(self, keys: Sequence[str], keep_s: float) -> list[str]:
        """Those of the pictures that can be referred to, which are kept for another keep_s seconds."""
        whose = ["all", ""] if self._owner is None else ["one", self._owner]
        script_keys = [INPUTS, *(OWNERS.format(key=key) for key in keys)]
        usable = self._use_script(keys=script_keys, args=[time.time() + keep_s, *whose, *keys])
        return [str(as_text(key)) for key in usable]

    def claim_unused(self, limit: int = 100) -> list[str]:
        """The keys of pictures that may go. Delete their blobs, then call `deleted`."""
        due = self._redis.zrangebyscore(INPUTS, "-inf", time.time(), 0, limit)
        return [key for key in map(as_text, due) if self._take(key)]  # type: ignore[arg-type]

    def _take(self, key: str) -> bool:
        script_keys = [INPUTS, INPUT_USES, BEING_DELETED.format(key=key), OWNERS.format(key=key)]
        return bool(self._take_script(keys=script_keys, args=[key, time.time(), DELETING_S]))

    def confirm_deleted(self, key: str) -> None:
        """The blob is deleted; the picture can be stored anew."""
        self._redis.delete(BEING_DELETED.format(key=key))
