"""Which samples have been used: every scheduled run takes the next unused slice, and keeps it when it is resumed."""

from sqlalchemy import Engine, Integer, String, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from core.claims import Base


class Slice(Base):
    """Run `run` has the samples [start, end) of `source`."""

    __tablename__ = "slices"
    source: Mapped[str] = mapped_column(String(80), primary_key=True)
    start: Mapped[int] = mapped_column(Integer, primary_key=True)
    end: Mapped[int] = mapped_column(Integer)
    run: Mapped[str] = mapped_column(String(80), index=True)


def take_slice(engine: Engine, *, source: str, run: str, first: int, count: int, limit: int) -> tuple[int, int] | None:
    """The next unused [start, end) of a source, at most `count` long; None when nothing is left before `limit`.

    The first slice of a source starts at `first`. A run that asks again gets the slice that it already has.
    """
    Base.metadata.create_all(engine, tables=[Base.metadata.tables[Slice.__tablename__]])
    while True:
        with engine.connect() as connection:
            mine = select(Slice.start, Slice.end).where(Slice.source == source, Slice.run == run)
            if (known := connection.execute(mine).first()) is not None:
                return known.start, known.end
            start = connection.scalar(select(func.max(Slice.end)).where(Slice.source == source)) or first
        if start >= limit:
            return None
        end = min(start + count, limit)
        try:
            with engine.begin() as connection:
                connection.execute(insert(Slice).values(source=source, start=start, end=end, run=run))
        except IntegrityError:
            continue  # another run took this slice in the meantime
        return start, end


def shorten_slice(engine: Engine, *, source: str, run: str, end: int) -> None:
    """Give the samples from `end` on back: the run used none of them, and the next one takes them."""
    shorter = update(Slice).where(Slice.source == source, Slice.run == run, Slice.end > end).values(end=end)
    with engine.begin() as connection:
        connection.execute(shorter)
