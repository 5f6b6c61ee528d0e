"""Where a training step's time goes, layer by layer, against what the device could do at best.

`fastalex.commands` calls `profile`; a script may, too.
"""

from fastalex.profile.measure import Pass, Profile, Row, profile
from fastalex.profile.table import table

__all__ = ["Pass", "Profile", "Row", "profile", "table"]
