//! Things with keys that are never mistaken for another's.

/// The key of a thing in a [`Slab`]. When the thing is gone, its place is given to another under
/// another key, so that what is late for the first does not reach the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its place, less than 2^24.
    pub slot: u32,
    /// How many had the place before.
    pub generation: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The most things in a slab.
const MAX: usize = 1 << 24;

/// A vector whose holes are filled first.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    length: usize,
}

impl<T> Slab<T> {
    /// An empty one, without an allocation.
    pub const fn new() -> Self {
        Slab {
            slots: Vec::new(),
            length: 0,
        }
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts a thing in, made from its key; `None`, and nothing is made, if there is no place.
    pub fn insert_with<E>(
        &mut self,
        make: impl FnOnce(Key) -> Result<T, E>,
    ) -> Option<Result<Key, E>> {
        let free = self.slots.iter().position(|(_, thing)| thing.is_none());
        let slot = match free {
            Some(slot) => slot,
            None if self.slots.len() < MAX => {
                self.slots.push((0, None));
                self.slots.len() - 1
            }
            None => return None,
        };
        let (generation, place) = &mut self.slots[slot];
        let key = Key {
            // Less than MAX.
            slot: slot as u32,
            generation: *generation,
        };
        Some(make(key).map(|thing| {
            *place = Some(thing);
            self.length += 1;
            key
        }))
    }

    /// Looks a thing up.
    pub fn get(&self, key: Key) -> Option<&T> {
        let (generation, thing) = self.slots.get(key.slot as usize)?;
        thing.as_ref().filter(|_| *generation == key.generation)
    }

    /// Looks a thing up.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, thing) = self.slots.get_mut(key.slot as usize)?;
        thing.as_mut().filter(|_| *generation == key.generation)
    }

    /// Takes a thing out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, thing) = self.slots.get_mut(key.slot as usize)?;
        if *generation != key.generation {
            return None;
        }
        let thing = thing.take()?;
        *generation = generation.wrapping_add(1);
        self.length -= 1;
        Some(thing)
    }

    /// All things.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, (generation, thing))| {
            let key = Key {
                slot: slot as u32,
                generation: *generation,
            };
            thing.as_ref().map(|thing| (key, thing))
        })
    }

    /// The keys of the things that fit.
    pub fn keys_of(&self, fits: impl Fn(&T) -> bool) -> Vec<Key> {
        self.iter()
            .filter(|(_, thing)| fits(thing))
            .map(|(key, _)| key)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert<T>(slab: &mut Slab<T>, thing: T) -> Key {
        let key = slab.insert_with(|_| Ok::<_, ()>(thing));
        key.expect("room").expect("made")
    }

    #[test]
    fn key_when_its_thing_is_gone_then_does_not_find_the_next() {
        let mut slab = Slab::new();
        let (a, b) = (insert(&mut slab, 'a'), insert(&mut slab, 'b'));
        assert_eq!(slab.remove(a), Some('a'));
        let c = insert(&mut slab, 'c');
        assert_eq!((c.slot, slab.len()), (a.slot, 2));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(a), None);
        assert_eq!((slab.get(b), slab.get(c)), (Some(&'b'), Some(&'c')));
        assert_eq!(slab.keys_of(|&t| t > 'b'), [c]);
    }

    #[test]
    fn thing_when_it_cannot_be_made_then_its_place_stays_free() {
        let mut slab = Slab::<char>::new();
        assert_eq!(slab.insert_with(|_| Err(5)), Some(Err(5)));
        assert_eq!((slab.len(), slab.is_empty()), (0, true));
        assert_eq!(insert(&mut slab, 'a').slot, 0);
    }
}
