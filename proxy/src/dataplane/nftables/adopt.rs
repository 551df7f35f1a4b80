//! What a predecessor left in the tables, taken over. Either all of it is as this version would have made it, or none
//! of it is taken: then the tables are made anew, in one transaction, and no packet finds them half-made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use seaway_nft::{ChainInfo, Element, Family};

use super::codec::{self, Address, Head};
use super::layout::{Elements, Layout, Stand};
use super::schema::{OUTSIDE_OFFSET, Set};
use crate::frontend::{Backend, Frontend};
use crate::plan::{Device, Host};

/// What is in the tables, as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The elements of every set whose elements we write.
    pub elements: BTreeMap<(Family, Set), Vec<Element>>,
    /// The chains.
    pub chains: BTreeMap<Family, Vec<ChainInfo>>,
}

/// The pieces of frontends at one address.
#[derive(Default)]
struct Pieces {
    heads: [Option<Head>; 2],
    pools: [BTreeMap<u32, Backend>; 2],
    ranges: Vec<IpNet>,
}

impl Layout {
    /// The layout that `contents` is exactly the elements of. None: there is no such layout.
    pub(super) fn adopt(contents: &Contents) -> Option<Self> {
        let mut pieces: HashMap<Address, Pieces> = HashMap::new();
        let mut hosts = Vec::new();
        for family in Family::ALL {
            let of = |set| contents.elements.get(&(family, set)).map_or(&[][..], Vec::as_slice);
            for (scope, set) in [Set::Inside, Set::Outside].into_iter().enumerate() {
                for element in of(set) {
                    let (address, _) = Address::read(family, &element.key)?;
                    pieces.entry(address).or_default().heads[scope] = Some(codec::read_head(element)?);
                }
            }
            for element in of(Set::Endpoints) {
                let (address, index, backend) = codec::read_endpoint(family, element)?;
                let (pool, index) =
                    if index < OUTSIDE_OFFSET { (0, index) } else { (1, index - OUTSIDE_OFFSET) };
                pieces.entry(address).or_default().pools[pool].insert(index, backend);
            }
            for element in of(Set::Ranges) {
                let (address, range) = codec::read_range(family, element)?;
                pieces.entry(address).or_default().ranges.push(range);
            }
            hosts.push(uplinks(of(Set::Uplinks))?);
        }
        let first = |family, set| contents.elements.get(&(family, set)).and_then(|elements| elements.first());
        let uplinks = hosts.pop().filter(|uplinks| hosts.iter().all(|other| other == uplinks))?;
        let host = Host {
            node_v4: first(Family::Ip, Set::Node).and_then(codec::read_node_v4),
            node_v6: first(Family::Ip6, Set::Node).and_then(codec::read_node_v6),
            uplinks,
            ..Host::default()
        };
        let mut shapes = Shapes::default();
        let stands: Option<HashMap<Address, Stand>> =
            pieces.into_iter().map(|(address, pieces)| Some((address, pieces.stand(&mut shapes)?))).collect();
        let layout = Self::of(stands?, host);
        layout.is_exactly(contents).then_some(layout)
    }

    fn is_exactly(&self, contents: &Contents) -> bool {
        Family::ALL.into_iter().all(|family| {
            let held = contents.elements.iter().filter(|((of, _), _)| *of == family);
            let mut count = 0;
            let held: Elements = held
                .flat_map(|((_, set), elements)| elements.iter().map(|element| (*set, element)))
                .inspect(|_| count += 1)
                .map(|(set, element)| ((set, element.key.clone()), element.clone()))
                .collect();
            held.len() == count && held == self.elements(family)
        })
    }
}

fn uplinks(elements: &[Element]) -> Option<BTreeSet<Device>> {
    let device = |element| {
        let (name, index) = codec::read_uplink(element)?;
        Some(Device { name: name.into(), index })
    };
    elements.iter().map(device).collect()
}

/// Most frontends of a Service are the same in both scopes; they share one value, as those that were computed do.
#[derive(Default)]
struct Shapes(Option<Arc<Frontend>>);

impl Shapes {
    fn shared(&mut self, frontend: Frontend) -> Arc<Frontend> {
        match &self.0 {
            Some(last) if **last == frontend => Arc::clone(last),
            _ => Arc::clone(self.0.insert(Arc::new(frontend))),
        }
    }
}

impl Pieces {
    fn stand(self, shapes: &mut Shapes) -> Option<Stand> {
        let pools = self.pools.map(|pool| {
            let whole = pool.keys().copied().eq(0..u32::try_from(pool.len()).unwrap_or(0));
            whole.then(|| pool.into_values().collect::<Arc<[Backend]>>())
        });
        let [Some(first), Some(second)] = pools else { return None };
        let pools = [first, second];
        let mut ranges = self.ranges;
        ranges.sort_unstable();
        let mut frontends = [None, None];
        for (scope, head) in self.heads.into_iter().enumerate() {
            let Some(head) = head else { continue };
            let pool = &pools[usize::from(head.apart)];
            let mut backends = pool.to_vec();
            backends.sort_unstable();
            if u32::try_from(backends.len()).ok()? != head.count {
                return None;
            }
            let frontend = Frontend {
                group: head.group,
                kind: head.kind,
                backends: backends.into(),
                affinity: head.affinity,
                source_ranges: if scope == 1 { ranges.iter().copied().collect() } else { Arc::from([]) },
                preserve_source: head.preserve_source,
                elsewhere: head.elsewhere,
                maglev: false,
                dsr: false,
                masquerade: head.masquerade,
            };
            frontends[scope] = Some(shapes.shared(frontend));
        }
        Some(Stand { frontends, pools })
    }
}
